"""Samples of a conversation as a tree of pieces, in which they share their beginnings."""

from dataclasses import dataclass, field


@dataclass
class _Piece:
    ids: list[int]
    begin: int
    parent: int
    supervised: list[bool] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.begin + len(self.ids)


class SampleTree:
    """A tree that grows by sequences of tokens, each of which shares its beginning with the previous one."""

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._path: list[int] = []

    def add(self, ids: list[int], shared: int, begin: int, end: int) -> None:
        """Add a sequence that equals the previous one over that one's length, or over its first `shared` tokens. Its
        tokens from `begin` to `end` are supervised.
        """
        same = self._same(ids, shared)
        self._cut_path(same)
        if same < len(ids):
            parent = self._path[-1] if self._path else -1
            rest = ids[same:]
            self._path.append(len(self._pieces))
            self._pieces.append(_Piece(rest, same, parent, [False] * len(rest)))
        for number in self._path:
            piece = self._pieces[number]
            for place in range(max(begin, piece.begin), min(end, piece.end)):
                piece.supervised[place - piece.begin] = True

    def _same(self, ids: list[int], shared: int) -> int:
        """The number of leading tokens that equal the current path's."""
        for number in self._path:
            piece = self._pieces[number]
            if piece.end <= shared:
                continue
            place = max(shared, piece.begin)
            while place < piece.end:
                if place >= len(ids) or ids[place] != piece.ids[place - piece.begin]:
                    return place
                place += 1
        return min(len(ids), self._pieces[self._path[-1]].end) if self._path else 0

    def _cut_path(self, place: int) -> None:
        """End the path at `place`; a piece that extends beyond it is split there."""
        while self._path and self._pieces[self._path[-1]].begin >= place:
            self._path.pop()
        if not self._path or self._pieces[self._path[-1]].end <= place:
            return
        number = self._path[-1]
        piece = self._pieces[number]
        at = place - piece.begin
        rest = _Piece(piece.ids[at:], place, number, piece.supervised[at:])
        for other in self._pieces:
            if other.parent == number:
                other.parent = len(self._pieces)
        piece.ids, piece.supervised = piece.ids[:at], piece.supervised[:at]
        self._pieces.append(rest)

    def pieces(self) -> tuple[list[list[int]], list[list[bool]], list[int]]:
        """Token ids, supervision masks and parents of the pieces. Pieces that others continue come first, so that
        chains of them are adjacent; then the others in the order in which they were added.
        """
        pieces = self._joined()
        parents = {piece.parent for piece in pieces.values()}
        order = sorted(pieces, key=lambda n: (1, n) if n not in parents else (0, pieces[n].begin))
        places = {number: place for place, number in enumerate(order)}
        chosen = [pieces[number] for number in order]
        return (
            [piece.ids for piece in chosen],
            [piece.supervised for piece in chosen],
            [places.get(piece.parent, -1) for piece in chosen],
        )

    def _joined(self) -> dict[int, _Piece]:
        """The pieces by number; a piece that only one other continues is merged with it."""
        pieces = dict(enumerate(self._pieces))
        children: dict[int, list[int]] = {}
        for number, piece in pieces.items():
            children.setdefault(piece.parent, []).append(number)
        for number in sorted(pieces, key=lambda n: -pieces[n].begin):
            own = children.get(number, [])
            if len(own) == 1:
                child, piece = pieces.pop(own[0]), pieces[number]
                piece.ids, piece.supervised = piece.ids + child.ids, piece.supervised + child.supervised
                children[number] = children.pop(own[0], [])
                for grandchild in children[number]:
                    pieces[grandchild].parent = number
        return pieces
