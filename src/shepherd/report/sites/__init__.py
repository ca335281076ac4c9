"""Runs over sites in the report: who took part when, from the journal; and the page of one site, from its own log."""
