"""The process group in which ranks exchange: mostly a gloo group of our own."""

from __future__ import annotations

import datetime
import re
from typing import Any

import torch
import torch.distributed as dist

from aimmerge_fast.presence import PeerError

#: Seconds after our timeout for which gloo goes on waiting: as long as an exit may take then.
_MARGIN = 1.0


def device_of(group: Any) -> torch.device:
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


_own: dict[int, tuple[Any, Any]] = {}  # by the id of the group asked for, which is kept alive


def resolve(group: Any, timeout: float) -> Any:
    """The group to exchange in, None for alone."""
    if isinstance(group, str) and group != "auto":
        raise ValueError(f"process_group={group!r} must be 'auto', None or a process group")
    ready = dist.is_available() and dist.is_initialized()
    if group is None or not ready:
        return None
    asked = dist.group.WORLD if group == "auto" else group
    if asked is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("process_group is one of which this process is not a member")
    if dist.get_world_size(asked) <= 1:
        return None
    return _private(asked, timeout)


def _private(group: Any, timeout: float) -> Any:
    """A gloo group of our own: ranks out of step then wait, where mixed collectives would abort."""
    if torch.cuda.is_available() and dist.get_backend(group) != "gloo":
        return group  # its NCCL takes tensors where they are
    patience = datetime.timedelta(seconds=timeout + _MARGIN)
    if id(group) not in _own:
        ranks = dist.get_process_group_ranks(group)
        try:
            own = dist.new_group(
                ranks, backend="gloo", timeout=patience, use_local_synchronization=True
            )
        except RuntimeError as error:
            raise PeerError(
                f"not all of ranks {ranks} came to build a merger within {timeout:g} s "
                f"({first_line(error)})"
            ) from error
        _own[id(group)] = group, own
    own = _own[id(group)][1]
    dist.distributed_c10d._set_pg_timeout(patience, own)
    return own


def first_line(error: BaseException) -> str:
    """Without the source file that gloo puts before it and the advice after it."""
    return re.sub(r"^\[[^]]*\] |\. This is typically.*", "", str(error).splitlines()[0])
