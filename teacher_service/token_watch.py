"""Notices that the tokens file has changed, and lets the service use the new tokens.

The tokens are compared, not the file's date or inode: a rename, a symbolic link that Kubernetes turns to another folder
and an editor's overwriting are all the same. A file that cannot be used changes nothing but the log and a counter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from stillhouse.errors import ConfigurationError
from teacher_service.auth import Access, Token
from teacher_service.metrics import Metrics

CHECK_SECONDS = 1.0

logger = structlog.get_logger(__name__)


async def watch_tokens(read: Callable[[], tuple[Token, ...]], access: Access, metrics: Metrics) -> None:
    """Read the tokens every second, until cancelled; hand them to `access` when they have changed."""
    refused = ""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            # In a thread: the file may lie on a disk that hangs.
            tokens = await asyncio.to_thread(read)
        except ConfigurationError as error:
            if str(error) != refused:
                refused = str(error)
                metrics.token_reloads.labels("refused").inc()
                logger.warning("tokens_kept", reason=refused, remedy="mend the tokens file; the old tokens stay in use")
            continue
        refused = ""
        if tokens != access.tokens:
            access.replace(tokens)
            metrics.token_reloads.labels("used").inc()
            logger.info("tokens_reloaded", callers=sorted({token.name for token in tokens}))
