"""Upload of a folder that ``ijepa-bench weights export`` wrote, to the Hub or its like.

``HF_ENDPOINT`` in the environment names another hub, ``HF_TOKEN`` the token (or that of
``hf auth login``).
"""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ijepa.errors import UserError

NO_ANSWER: Any = HfHubHTTPError.__bases__[0]
"""Any error of the HTTP package, which is httpx in huggingface_hub 1 and httpx2 in 2."""

FILES = ("config.json", "model.safetensors", "README.md")


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Upload every file of a folder as one model repository; returns its address.

    Raises UserError, before anything is sent, for a folder without FILES or without a token.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} has no {', '.join(missing)}: make it with "
            "ijepa-bench weights export FILE --layout timm-folder --out FOLDER"
        )
    if (token := get_token()) is None:
        raise UserError(
            "there is no token for the hub: set HF_TOKEN to one that may write "
            "(huggingface.co/settings/tokens), or run hf auth login"
        )
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    api = HfApi(endpoint=endpoint, token=token, library_name="ijepa-bench")
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id, folder_path=folder, commit_message="Encoder of ijepa-bench"
        )
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no name of a repository: {reason(error)}") from None
    except HfHubHTTPError as error:
        raise http_error(endpoint, repo, error) from None
    except (NO_ANSWER, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{endpoint} could not be reached ({reason(error)}): check the network, HF_ENDPOINT "
            "and HF_HUB_OFFLINE, then run the same command again"
        ) from None
    return str(address)


def http_error(endpoint: str, repo: str, error: HfHubHTTPError) -> UserError:
    """UserError for an HTTP error of the hub; for 401 and 403 it names the token."""
    status = error.response.status_code
    remedy = "run the same command again, later if it is the hub's fault"
    if status in (401, 403):
        remedy = "set HF_TOKEN to a token that is valid and may write to this repository"
    return UserError(f"{endpoint} answers {status} for {repo} ({reason(error)}): {remedy}")


def reason(error: Exception) -> str:
    """First line of an error, or its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
