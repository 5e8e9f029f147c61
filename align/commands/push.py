"""Implements `qwen-align push`, which uploads a data folder to the Hugging Face hub.

*Untested on the hub*: tests use a stand-in.
"""

from pathlib import Path

from qwen_align.align.errors import DataError, RecipeError

FILES = ("README.md", "rows.jsonl", "dropped.jsonl")


def push_data_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Uploads a built data set to a Hugging Face data set repository and returns its address.

    Card, rows and drops are uploaded. The repository is created if needed.

    The token is the one `hf auth login` or HF_TOKEN gave; it is neither read nor shown here. Raises DataError if the
    folder holds no built data, RecipeError if the hub refuses.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: holds no {' and no '.join(missing)}; push what `build` or a data stage has made")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi(library_name="qwen-align")
    try:
        hub.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        return str(
            hub.upload_folder(
                repo_id=repository,
                repo_type="dataset",
                folder_path=folder,
                allow_patterns=list(FILES),
                commit_message="Data built by qwen-align",
            )
        )
    except (HfHubHTTPError, HFValidationError, ConnectionError, OSError) as error:
        reply = str(error).strip().partition("\n")[0]
        raise RecipeError(f"{repository}: the hub refused it: {reply or type(error).__name__}") from None
