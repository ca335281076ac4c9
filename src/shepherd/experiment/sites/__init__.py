"""Federations on real machines, as the commands carry them out: a coordinator, a site, and both on one machine.

`coordinator.py` serves a run, `attend.py` is a site at work; `links.py` opens what carries their messages and is
replaced in tests. `presence.py` is who was there last, `site_file.py` writes a site.toml, `card_text.py` a run card in
plain words, `decisions.py` approves and declines, `trial.py` does all of it on one machine. None of them loads torch.
"""
