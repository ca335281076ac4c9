"""Sections of the report: functions RunRecord -> Section, one topic per file.

A section computes its values first, then writes its text, figures and tables; `html.view` has the order. Add a section
as a file here with a line in `html.view`.
"""
