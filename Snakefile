# The workflow is workflow/Snakefile. Try: make reproduce, or snakemake --profile workflow/profiles/local

# As `include:` does, but with its first target: `snakemake` alone makes everything.
workflow.include("workflow/Snakefile", overwrite_default_target=True)
