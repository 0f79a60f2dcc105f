"""The methods: one module each, whose file name is the method's name in a config (ijepa.method)."""
