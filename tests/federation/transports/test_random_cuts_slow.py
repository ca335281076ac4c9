"""A network that cuts, flaps and is silent at random bytes: each question is answered once, by the right bytes."""

from __future__ import annotations

import random
import sys
import threading
import time

import pytest

from federation_kits import Kits
from network_sites import EchoSite, Events, ServedSite, Way, until
from shepherd.federation.transports import serving
from shepherd.federation.transports.serving import serve_federation

pytest.importorskip("nvflare")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NVFlare runs on Linux"),
]
LIMIT, QUESTIONS, SIZE = 4 * 2**20, 8, 2**20
CUTS = ("at a byte", "flap", "silence")


@pytest.mark.parametrize("seed", [0, 1])
def test_every_question_is_answered_once_by_the_right_bytes_whatever_is_cut(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "SILENCE", 3.0)
    dice, kits = random.Random(seed), Kits(tmp_path)

    def cut(way: Way, kind: str, delay: float) -> None:
        time.sleep(delay)
        if kind == "at a byte":
            way.left = dice.randrange(1, 2 * SIZE)  # on its way down or up
            return
        way.mode = {"flap": "closed", "silence": "silent"}[kind]
        if kind == "flap":
            way.close()
        time.sleep(dice.uniform(0.2, 5.0))
        way.mode = "open"

    with serve_federation(kits.server(), limit=LIMIT, on_event=Events()) as transport:
        way = Way(kits.port)
        far = ServedSite(Kits(tmp_path, way.port, kits.authority).site("far"), EchoSite())
        near = ServedSite(kits.site("near"), EchoSite())
        try:
            for number in range(QUESTIONS):
                until(lambda: transport.present().keys() >= {"far", "near"}, 90.0)
                question = {site: dice.randbytes(SIZE) + f"{site} {number}".encode() for site in ("far", "near")}
                kind, delay = CUTS[number % len(CUTS)], dice.uniform(0.0, 0.4)
                cutting = threading.Thread(target=cut, args=[way, kind, delay])
                cutting.start()
                answers: dict[str, list[bytes | None]] = {}
                enough = lambda answers=answers: answers.keys() >= {"far", "near"}  # noqa: E731
                for reply in transport.ask(question, 120.0, enough, LIMIT, lambda client, data: None):
                    answers.setdefault(reply.client, []).append(reply.data)
                cutting.join()
                assert answers == {site: [b"re:" + data] for site, data in question.items()}, (number, kind)
        finally:
            way.mode = "open"
            far.end()
            near.end()
            way.end()
    assert len(near.site.seen) == len(set(near.site.seen)) == QUESTIONS, "the cuts of one site cost the other nothing"
    assert len(set(far.site.seen)) == QUESTIONS
