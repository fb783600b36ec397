"""Pushing a release: one commit, tried again where the connection fails, and nothing of it seen until it is whole."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from calor_hf.hub.card import CARD
from calor_hf.hub.release import Release, replaces

logger = logging.getLogger(__name__)

T = TypeVar("T")
WAITS = (1.0, 4.0)  # seconds before the second and the third try
_TRANSPORT = ("httpx", "httpx2", "httpcore", "requests", "urllib3")


class PushFailedError(OSError):
    """The Hub could not be reached, or failed; what it had before is untouched."""


def push_release(
    release: Release,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload model",
) -> CommitInfo:
    """Publish a release as one commit; files of an earlier one that it lacks are deleted in the same commit.

    Args:
        release: What to publish.
        repo_id: ``user/name``; it is made if it is not there.
        private: Whether a new repository is private; None: if rebuilt images of real people are in it, and else as
            the account's default is.
        revision: Branch, made if it is not there; None: main.
        token: Of the Hub; None: that of ``hf auth login`` or ``HF_TOKEN``.
        message: Of the commit.

    Raises:
        PermissionError: the token is missing, wrong, or not for this repository.
        ValueError: rebuilt images of real people would go into a repository that is public.
        PushFailedError: the connection or the Hub failed several times; the same call again goes on.
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
    """The model card on the Hub, fetched into ``folder``; None: there is none.

    Raises:
        PermissionError: as :func:`push_release`.
        PushFailedError: as :func:`push_release`.
    """
    api = HfApi(token=token)

    def fetch() -> Path | None:
        name = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        if not api.file_exists(name, CARD, revision=revision):
            return None
        return Path(api.hf_hub_download(name, CARD, revision=revision, local_dir=folder, force_download=True))

    return persistently(fetch, repo_id)


def persistently(do: Callable[[], T], repo_id: str) -> T:
    """Do something with the Hub, again where the connection or the Hub fails.

    Raises:
        PermissionError: the token is missing, wrong, or not for this.
        PushFailedError: the Hub failed each time, or refuses what it was given.
    """
    for wait in (*WAITS, None):
        try:
            return do()
        except OfflineModeIsEnabled as error:
            raise PushFailedError(f"cannot reach {repo_id}: HF_HUB_OFFLINE is set; unset it") from error
        except Exception as error:
            status = _status(error)
            if status in (401, 403):
                raise PermissionError(
                    f"the Hub refuses access to {repo_id} ({status}); log in with `hf auth login`, or set HF_TOKEN to "
                    "a token that may write there"
                ) from error
            if status is not None and not _passes(error, status):
                reason = f"{status}: {_last_words(error)}"
                raise PushFailedError(f"the Hub refuses it ({reason}); nothing was changed") from error
            if not _passes(error, status):
                raise
            if wait is None:
                raise PushFailedError(
                    f"pushing to {repo_id} failed {len(WAITS) + 1} times ({_last_words(error)}); the repository is as "
                    "it was before. What was uploaded is kept there: the same command again goes on"
                ) from error
            logger.warning("the Hub cannot be reached (%s); trying again in %g s", _last_words(error), wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def check_token(token: str | None = None) -> None:
    """Ask the Hub who this is, so that a wrong token is found before long work and not after it.

    Raises:
        PermissionError: no one.
        PushFailedError: as :func:`push_release`.
    """
    if (token or get_token()) is None:
        raise PermissionError("no token for the Hub; log in with `hf auth login`, or set HF_TOKEN")
    persistently(lambda: HfApi(token=token).whoami(), "the Hub")


def _check_visibility(release: Release, name: str, is_private: bool, private: bool | None) -> None:
    if private is not None and private != is_private:
        now, wanted = ("private", "public") if is_private else ("public", "private")
        message = f"{name} exists already and is {now}; make it {wanted} in its settings on the Hub"
        if private:
            raise ValueError(f"{message} first")
        logger.warning("%s", message)
    if release.shows_people and private is None and not is_private:
        raise ValueError(
            f"{name} is public, and images rebuilt of real people would be in it; leave --include-reconstructions, "
            "push to another repository, or say --public"
        )


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _status(error: BaseException) -> int | None:
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(one, HfHubHTTPError) and response is not None:
            return int(response.status_code)
    return None


def _passes(error: BaseException, status: int | None) -> bool:
    """Whether it may be over the next time."""
    if status is not None:
        return status >= 500 or status in (408, 429)
    return any(
        isinstance(one, ConnectionError | TimeoutError) or type(one).__module__.split(".")[0] in _TRANSPORT
        for one in _chain(error)
    )


def _last_words(error: BaseException) -> str:
    return (str(_chain(error)[-1]) or type(error).__name__).strip().splitlines()[0]
