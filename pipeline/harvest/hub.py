"""What the Hugging Face hub says where it does not give something, in words that a user can act on."""

from __future__ import annotations

from storage.damage import first_line


def is_gated(error: BaseException) -> bool:
    """Say whether the hub refuses a repository until its terms are accepted."""
    from huggingface_hub.errors import GatedRepoError

    return any(isinstance(cause, GatedRepoError) for cause in (error, error.__cause__)) or "is a gated" in str(error)


def why_not_readable(what: str, repository: str, error: BaseException, hint: str = "Check the id") -> str:
    """Return the message for a model, dictionary or dataset that is not here and that the hub does not give."""
    if is_gated(error):
        return (
            f"{what} is gated: ask for access at https://huggingface.co/{repository.strip('/')}, then log in with "
            "`hf auth login`"
        )
    return (
        f"{what} is neither a folder here nor readable from the hub ({first_line(error)}). {hint}, your network and, "
        "if it is private, `hf auth login`"
    )
