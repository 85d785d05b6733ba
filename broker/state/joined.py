"""Reads neighbours as one history (`ingest.join_arcsec`): LSST gives one transient several diaObjectIds.

Objects stay stored separately, and so do queues and books: a worker that has claimed an object also reads
those of its group and classifies all of them together. Switching it off restores the separate histories. A group is
everything that can be reached from neighbour to neighbour. It depends only on what is stored, never on the order in
which it arrived, and it is named after the smallest of its names.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.neighbours import Neighbours, Place
from skyheed.broker.state.sequence import Lane, StoredSequence
from skyheed.classifier.history import Photometry

MOST_JOINED = 8  # objects in a group; a larger one is an artefact or a crowded field, and is not joined
POSITIONS = Lane(images=())
MARGIN = 2.0  # times the radius: a neighbour's detections scatter around its position


@dataclass(frozen=True)
class Joined:
    """Reads the histories of groups.

    Attributes:
        arcsec: largest distance between neighbours, from mean to mean of their stored detections.
    """

    store: SequenceStore
    neighbours: Neighbours
    arcsec: float

    def read(self, claimed: Sequence[StoredSequence], lane: Lane) -> list[StoredSequence]:
        """The same sequences, each joined with those of its group; then without tokens of more than one epoch.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access.
        """
        groups = self._groups(claimed)
        wanted = sorted({name for group in groups if len(group) > 1 for name in group})
        found = self.store.sequences(wanted, lane if lane.span == 1 else replace(lane, span=0))
        whole = {name: sequence for name, sequence in zip(wanted, found, strict=True) if sequence is not None}
        joined = []
        for own, group in zip(claimed, groups, strict=True):
            members = [whole[name] for name in group if name in whole]
            joined.append(join(own, members) if len(members) > 1 and own.object_id in whole else own)
        return joined

    def _groups(self, claimed: Sequence[StoredSequence]) -> list[list[str]]:
        """The group of each sequence, in the order of names; only itself if the group is too large."""
        places = {sequence.object_id: place_of(sequence) for sequence in claimed}
        links: dict[str, list[str]] = {}
        frontier = list(places)
        for _ in range(MOST_JOINED):
            self._link(frontier, places, links)
            frontier = [name for name in dict.fromkeys(n for o in frontier for n in links[o]) if name not in links]
            if not frontier:
                break
        return [_group(sequence.object_id, links) for sequence in claimed]

    def _link(self, frontier: Sequence[str], places: dict[str, Place], links: dict[str, list[str]]) -> None:
        """Find the neighbours of each of `frontier`; look up the positions of objects met for the first time."""
        candidates = self.neighbours.near([places[name] for name in frontier], MARGIN * self.arcsec)
        new = sorted(set().union(*candidates) - set(places))
        for name, sequence in zip(new, self.store.sequences(new, POSITIONS), strict=True):
            if sequence is not None:  # forgotten in the meantime; its cell still lists it
                places[name] = place_of(sequence)
        for name, near in zip(frontier, candidates, strict=True):
            links[name] = [
                other for other in sorted(near)
                if other != name and other in places and separation(places[name], places[other]) <= self.arcsec
            ]  # fmt: skip


def _group(name: str, links: Mapping[str, Sequence[str]]) -> list[str]:
    group, waiting = {name}, [name]
    while waiting and len(group) <= MOST_JOINED:
        new = [other for other in links.get(waiting.pop(), ()) if other not in group]
        group.update(new)
        waiting += new
    return sorted(group, key=rank) if len(group) <= MOST_JOINED else [name]


def rank(name: str) -> tuple[int, str]:
    """The sort order of names: numbers by their value."""
    return len(name), name


def place_of(sequence: StoredSequence) -> Place:
    """The mean position of the stored detections, degrees."""
    ra, dec = np.radians(sequence.header["ra"]), np.radians(sequence.header["dec"])
    x, y, z = np.mean([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    return float(np.degrees(np.arctan2(y, x))) % 360.0, float(np.degrees(np.arctan2(z, np.hypot(x, y))))


def separation(one: Place, other: Place) -> float:
    """The angle between two positions, arcsec (haversine: accurate for small ones)."""
    (ra, dec), (other_ra, other_dec) = np.radians(one), np.radians(other)
    half = np.sin((other_dec - dec) / 2) ** 2 + np.cos(dec) * np.cos(other_dec) * np.sin((other_ra - ra) / 2) ** 2
    return float(np.degrees(2 * np.arcsin(np.sqrt(min(half, 1.0)))) * 3600.0)


def join(claimed: StoredSequence, members: Sequence[StoredSequence]) -> StoredSequence:
    """One history from those of several objects, in the order of (MJD, source id).

    A detection that two of them hold counts once, as held by the first of them in the order of names. The context is
    that of the newest detection.

    Args:
        claimed: the one that a worker has claimed.
        members: as they are now, in the order of names, all read without tokens, or with tokens of single epochs.
    """
    header = np.concatenate([member.header for member in members])
    _, first = np.unique(header["source_id"], return_index=True)
    order = first[np.lexsort((header["source_id"][first], header["mjd"][first]))]
    begins = np.cumsum([0, *(len(m.header) for m in members)])
    newest = members[int(np.searchsorted(begins[1:], order[-1], side="right"))]
    points = [m.photometry for m in members if m.photometry is not None and len(m.photometry)]
    own = next(member for member in members if member.object_id == claimed.object_id)
    sources = header["source_id"][order].astype(">u8").tobytes()
    epoch = np.full(len(header), -1)  # of the joined history, or -1 for what another member holds as well
    epoch[order] = np.arange(len(order))
    of_members = [epoch[start:end] for start, end in itertools.pairwise(begins)]
    return replace(
        own,
        claim=replace(claimed.claim, sources=sources),
        header=header[order],
        **_images(own, members, of_members),
        photometry=Photometry.merged(points) if points else own.photometry,
        context=newest.context,
        members=tuple(member.object_id for member in members),
        published=max(member.revision for member in members),
    )


def _images(
    own: StoredSequence, members: Sequence[StoredSequence], of_members: Sequence[NDArray[np.int64]]
) -> dict[str, Any]:  # fmt: skip
    """Stamps, further images, tokens and what is gone of a joined history, as fields of it.

    Args:
        of_members: for each member the epochs of the joined history that its own are, -1 for those that are left out.
    """
    both = list(zip(members, of_members, strict=True))
    shown = np.concatenate([epochs[member.shown] for member, epochs in both])
    rows = np.argsort(shown, kind="stable")[int((shown < 0).sum()) :]
    tokens = {int(epochs[n]): token for member, epochs in both for n, token in member.tokens.items()}
    gone = {int(epochs[n]) for member, epochs in both for n in member.gone}
    mine = next(epochs for member, epochs in both if member is own)
    return {
        "stamps": np.concatenate([m.stamps for m in members])[rows] if own.looked else own.stamps,
        "images": {kind: np.concatenate([m.images[kind] for m in members])[rows] for kind in own.images},
        "tokens": {n: token for n, token in tokens.items() if n >= 0},
        "gone": frozenset(gone - {-1}),
        "keeps": frozenset(mine[mine >= 0].tolist()) if own.span == 1 else frozenset(),
    }
