"""Sections of the report: functions RunRecord -> Section, each in the file of its topic; `html.view` has the order."""
