"""What a site lets this user do: accounts, partitions and QOS, and the network interfaces of this host.

``sacctmgr`` lists the associations of a user, ``scontrol`` the partitions with whom they admit. Both print one record a
line, which is all that is parsed here.
"""

from __future__ import annotations

import grp
import inspect
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed import Scheduler
from distributed.utils import get_ip_interface

from jobs.cluster.profiles import SlurmJob
from jobs.cluster.slurm import ANSWERING, slurm_output, submit, user_name
from storage.errors import InputError, SubspaceError, shown

#: Combinations that a message names.
SHOWN = 5
#: What Slurm says of a job that asks for a combination which is not the user's.
NOT_ALLOWED = re.compile(
    r"invalid (account|qos|partition)|account/partition|not permitted to use|group not allowed", re.IGNORECASE
)
#: Why a job of Slurm waits in vain, and what to change. Limits of a user or group pass when other jobs end.
IN_VAIN = (
    (
        r"PartitionTimeLimit|Max(Wall|CPUMinutes|CpuMinutes)\w*PerJob",
        "set walltime to what the partition and your QOS allow (scontrol show partition)",
    ),
    (
        r"PartitionNodeLimit|BadConstraints|(Assoc|QOS)(Max\w*Per(Job|Node)|Min)",
        "no node of that partition may give one job so much: ask for fewer cores, less memory, fewer GPUs, or another "
        "constraint or partition",
    ),
    (r"InvalidAccount|AccountNotAllowed|InvalidQOS|QOSNotAllowed|Reservation(Deleted|Invalid)", ""),
    (
        r"(Assoc|QOS)Grp(?!\w*RunMinutes)\w*Minutes",
        "the account or QOS has used up its budget: name another, or ask your site",
    ),
    (r"JobHeld|launch failed requeued held", "the job is held: scontrol release it, or ask your site why"),
    (r"DependencyNeverSatisfied", "the job before it failed"),
)
#: What Slurm says when it cannot be reached for a while.
AWAY = re.compile(r"unable to contact|timed out|connection|temporarily|zero bytes", re.IGNORECASE)


@dataclass(frozen=True)
class Association:
    """What an account grants a user: in one partition, or in all (None), the QOS named."""

    account: str
    partition: str | None
    qos: tuple[str, ...]


@dataclass(frozen=True)
class Partition:
    """A partition that is up, and which accounts, QOS and groups of users it admits; None: all."""

    name: str
    default: bool
    accounts: tuple[str, ...] | None
    qos: tuple[str, ...] | None
    groups: tuple[str, ...] | None = None
    refused_accounts: tuple[str, ...] = ()
    refused_qos: tuple[str, ...] = ()


@dataclass(frozen=True)
class Combination:
    """An account, a partition and a QOS that go together; None where the site has no such thing."""

    account: str | None
    partition: Partition
    qos: str | None

    def __str__(self) -> str:
        keys = {"partition": self.partition.name, "account": self.account, "qos": self.qos}
        text = ", ".join(f"{key}: {value}" for key, value in keys.items() if value is not None)
        return f"{{{text}}}"

    def suits(self, job: SlurmJob) -> bool:
        """Return whether a job with these keys may be submitted; what it leaves out, Slurm adds by itself."""
        named = self.partition.default if job.partition is None else self.partition.name in job.partition.split(",")
        return (
            named
            and (self.account is None or job.account in (None, self.account))
            and (self.qos is None or job.qos in (None, self.qos))
        )


def parse_associations(text: str) -> list[Association]:
    r"""Parse what ``sacctmgr -nP show assoc format=account,partition,qos`` prints.

    >>> parse_associations("lab||normal,long\n")
    [Association(account='lab', partition=None, qos=('normal', 'long'))]
    """
    rows = [line.split("|") for line in text.splitlines() if line.count("|") >= 2]
    return [
        Association(account.strip(), partition.strip() or None, _names(qos) or ())
        for account, partition, qos, *_ in rows
        if account.strip()
    ]


def parse_partitions(text: str) -> list[Partition]:
    """Parse what ``scontrol --oneliner show partition`` prints, but for partitions that take no jobs."""
    partitions = []
    for line in text.splitlines():
        keys = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in keys and keys.get("State", "UP") == "UP":
            partitions.append(
                Partition(
                    name=keys["PartitionName"],
                    default=keys.get("Default") == "YES",
                    accounts=_names(keys.get("AllowAccounts", "ALL")),
                    qos=_names(keys.get("AllowQos", "ALL")),
                    groups=_names(keys.get("AllowGroups", "ALL")),
                    refused_accounts=_names(keys.get("DenyAccounts", "")) or (),
                    refused_qos=_names(keys.get("DenyQos", "")) or (),
                )
            )
    return partitions


def _names(text: str) -> tuple[str, ...] | None:
    """Return names with commas between; None for all of them."""
    names = tuple(name for name in text.strip().split(",") if name and name != "(null)")
    return None if names == ("ALL",) else names


def combine(associations: Sequence[Association] | None, partitions: Sequence[Partition]) -> Iterator[Combination]:
    """Yield what goes together; `associations` are None where the site keeps no accounts."""
    for partition in partitions:
        if associations is None:
            yield Combination(None, partition, None)
            continue
        for association in associations:
            if association.partition not in (None, partition.name):
                continue
            if not _admits(association.account, partition.accounts, partition.refused_accounts):
                continue
            if not association.qos:
                yield Combination(association.account, partition, None)
            for qos in association.qos:
                if _admits(qos, partition.qos, partition.refused_qos):
                    yield Combination(association.account, partition, qos)


def _admits(name: str, admitted: Sequence[str] | None, refused: Sequence[str]) -> bool:
    return (admitted is None or name in admitted) and name not in refused


def _group_names(number: int) -> list[str]:
    """Return the name of a group; none where the system has no name for it."""
    try:
        return [grp.getgrgid(number).gr_name]
    except KeyError:
        return []


def allowed_combinations() -> list[Combination]:
    """Ask Slurm what this user may use; SubspaceError if it does not answer."""
    listing = slurm_output("scontrol", "--oneliner", "show", "partition", timeout=ANSWERING)
    mine = {name for group in os.getgroups() for name in _group_names(group)}
    partitions = [each for each in parse_partitions(listing) if each.groups is None or mine & {*each.groups}]
    user = f"user={user_name()}"
    try:
        listed = slurm_output(
            "sacctmgr", "-nP", "show", "assoc", user, "format=account,partition,qos", timeout=ANSWERING
        )
    except SubspaceError:  # no accounting, as on a small cluster: then there is nothing to be allowed
        return list(combine(None, partitions))
    return list(combine(parse_associations(listed) or None, partitions))


def advise(combinations: Sequence[Combination], where: str) -> str:
    """Return which combinations a job may ask for, as keys of a cluster file."""
    if not combinations:
        return "No account of this user goes with any partition that is up: ask your site for one"
    more = f" (and {len(combinations) - SHOWN} more)" if len(combinations) > SHOWN else ""
    return f"What you may use, under {where}: {'; '.join(map(str, combinations[:SHOWN]))}{more}"


def explain_refusal(message: str) -> str:
    """Return what Slurm said of a job that it refused, with the combinations that work where that is the matter."""
    if not NOT_ALLOWED.search(message):
        return message
    try:
        return f"{message}\n{advise(allowed_combinations(), 'jobqueue.PROFILE')}"
    except SubspaceError as error:
        return f"{message}\nWhat this user may use is not known: {error}"


def waits_in_vain(reason: str) -> str | None:
    """Return what to do about a waiting job that will not start by itself; None where it may.

    >>> waits_in_vain("(Resources)") is None, waits_in_vain("PENDING (JobHeldUser)")
    (True, 'the job is held: scontrol release it, or ask your site why')
    """
    for pattern, remedy in IN_VAIN:
        if re.search(pattern, reason):
            return remedy or explain_refusal("not permitted to use what the job names").partition("\n")[2]
    return None


def submit_explained(script: Path, options: Sequence[str], arguments: Sequence[str]) -> str:
    """Submit a script, as :func:`jobs.cluster.slurm.submit` does; a refusal comes with the combinations that work."""
    try:
        return submit(script, options, arguments)
    except SubspaceError as error:
        raise SubspaceError(explain_refusal(str(error))) from error


def check_scheduler_options(job: SlurmJob, where: str) -> None:
    """Refuse options that are none, an interface that this host lacks, a port in use: no scheduler could start."""
    options = job.scheduler_options
    valid = sorted(inspect.signature(Scheduler).parameters.keys() - {"security", "protocol", "kwargs"})
    if unknown := sorted(options.keys() - valid):
        raise InputError(
            f"{where}: scheduler-options has {', '.join(map(shown, unknown))}; it may have: {', '.join(valid)}"
        )
    interface, port = options.get("interface", job.interface), options.get("port", 0)
    if interface is not None and "host" not in options:
        try:
            get_ip_interface(interface)
        except ValueError as error:
            raise InputError(
                f"{where}: {error}, on {socket.gethostname()}, where the scheduler runs. If the nodes have it, add "
                "scheduler-options: {interface: …} with one of this host"
            ) from error
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, TypeError, OverflowError) as error:
            raise InputError(
                f"{where}: the scheduler cannot listen on port {shown(port)} of {socket.gethostname()} ({error}); "
                "choose another in scheduler-options, or leave it out for any that is free"
            ) from error
