"""Push a release as one commit, retried if the connection fails."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from calor_hf.hub.card import CARD
from calor_hf.hub.release import Release, replaces

logger = logging.getLogger(__name__)

T = TypeVar("T")
WAITS = (1.0, 4.0)
"""Seconds before the second and the third attempt."""
_TRANSPORT = ("httpx", "httpx2", "httpcore", "requests", "urllib3")


class PushFailedError(OSError):
    """The Hub could not be reached, or failed; the repository is unchanged."""


def push_release(
    release: Release, repo_id: str, *, private: bool | None = None, revision: str | None = None,
    token: str | None = None, message: str = "Upload model",
) -> CommitInfo:  # fmt: skip
    """Publish a release as one commit, which also deletes files of an earlier release that it lacks.

    Args:
        release: The files to publish.
        repo_id: ``user/name``; created if it does not exist.
        private: Whether a new repository is private. Defaults to True with reconstructions of real people, else to the
            account's setting.
        revision: Branch, created if it does not exist. Defaults to main.
        token: Token of the Hub. Defaults to that of ``hf auth login`` or ``HF_TOKEN``.
        message: Commit message.

    Raises:
        PermissionError: the token is missing, invalid, or has no access to this repository.
        ValueError: reconstructions of real people would be published in a public repository.
        PushFailedError: the connection or the Hub failed several times; the same call continues.
    """
    api = HfApi(token=token)

    def push() -> CommitInfo:
        wanted = True if release.shows_people and private is None else private
        name = api.create_repo(repo_id, private=wanted, exist_ok=True).repo_id
        _check_visibility(release, name, bool(api.model_info(name).private), private)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        old = api.list_repo_files(name, revision=revision)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(file, content if isinstance(content, bytes) else str(content))
            for file, content in sorted(release.files.items())
        ]
        operations += [CommitOperationDelete(file) for file in old if replaces(file) and file not in release.files]
        return api.create_commit(name, operations, commit_message=message, revision=revision)

    return persistently(push, repo_id)


def remote_card(repo_id: str, folder: Path, revision: str | None = None, token: str | None = None) -> Path | None:
    """Download the model card from the Hub into ``folder``, or return None if the Hub has none.

    Errors are those of :func:`push_release`.
    """
    api = HfApi(token=token)

    def fetch() -> Path | None:
        name = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        if not api.file_exists(name, CARD, revision=revision):
            return None
        return Path(api.hf_hub_download(name, CARD, revision=revision, local_dir=folder, force_download=True))

    return persistently(fetch, repo_id)


def persistently(do: Callable[[], T], repo_id: str) -> T:
    """Call the Hub, again if the connection or the Hub fails.

    Raises:
        PermissionError: the token is missing, invalid, or has no access.
        PushFailedError: the Hub failed each time, or refuses the request.
    """
    for wait in (*WAITS, None):
        try:
            return do()
        except OfflineModeIsEnabled as error:
            raise PushFailedError(f"cannot reach {repo_id}: HF_HUB_OFFLINE is set; unset it") from error
        except Exception as error:
            chain = _chain(error)
            reason = (str(chain[-1]) or type(error).__name__).strip().splitlines()[0]
            responses = [getattr(one, "response", None) for one in chain if isinstance(one, HfHubHTTPError)]
            status = next((int(one.status_code) for one in responses if one is not None), None)
            if status in (401, 403):
                raise PermissionError(
                    f"the Hub refuses access to {repo_id} ({status}); log in with `hf auth login`, or set HF_TOKEN to "
                    "a token with write access"
                ) from error
            if status is not None and status < 500 and status not in (408, 429):
                raise PushFailedError(f"the Hub refuses it ({status}: {reason}); nothing was changed") from error
            if status is None and not any(map(_is_transport_error, chain)):
                raise
            if wait is None:
                raise PushFailedError(
                    f"pushing to {repo_id} failed {len(WAITS) + 1} times ({reason}); the repository is unchanged. "
                    "Uploaded files are kept there: run the same command again to continue"
                ) from error
            logger.warning("the Hub cannot be reached (%s); trying again in %g s", reason, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def check_token(token: str | None, repo_id: str) -> None:
    """Check, before long work, that the token may write to a repository, which need not exist yet.

    Raises:
        PermissionError: there is no token, or it is invalid, only reads, or is of another account.
        ValueError: ``repo_id`` is no valid name.
        PushFailedError: as :func:`push_release`.
    """
    validate_repo_id(repo_id)
    if (token or get_token()) is None:
        raise PermissionError("no token for the Hub; log in with `hf auth login`, or set HF_TOKEN")
    account = persistently(lambda: HfApi(token=token).whoami(), "the Hub")
    owners = [account["name"], *(one["name"] for one in account.get("orgs", []))]
    if "/" in repo_id and repo_id.partition("/")[0] not in owners:
        raise PermissionError(f"the token may write to repositories of {', '.join(owners)}, not to {repo_id}")
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PermissionError(f"the token may only read; set HF_TOKEN to one with write access to {repo_id}")


def _check_visibility(release: Release, name: str, is_private: bool, private: bool | None) -> None:
    if private is not None and private != is_private:
        now, wanted = ("private", "public") if is_private else ("public", "private")
        message = f"{name} exists already and is {now}; make it {wanted} in its settings on the Hub"
        if private:
            raise ValueError(f"{message} first")
        logger.warning("%s", message)
    if release.shows_people and private is None and not is_private:
        raise ValueError(
            f"{name} is public, and reconstructions of real people would be published; omit --include-reconstructions, "
            "push to another repository, or pass --public"
        )


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _is_transport_error(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0] in _TRANSPORT
