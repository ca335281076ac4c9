"""The outputs of a study: study.json, study.csv, STUDY.md, study.tex and report.html. Loads no PyTorch."""

from __future__ import annotations

from typing import Any

from shepherd.experiment.study.design import Study
from shepherd.experiment.study.folder import StudyFolder
from shepherd.experiment.study.results import document, finished_records, to_csv, to_json
from shepherd.store.disk import DISK, make_folders, write_whole
from shepherd.store.lock import locked


def write_outputs(study: Study, folder: StudyFolder) -> dict[str, Any]:
    """Write all outputs from the RUN.json files that are there; the document of study.json.

    Under a lock, so that of two processes that end together the later one writes what it has read later.
    """
    from shepherd.report.study import latex_table, markdown, page

    make_folders(DISK, folder.path)
    with locked(folder.path, patience=60.0):
        records = finished_records(study, folder)
        found = document(study, records, [folder.progress(planned) for planned in study.runs])
        for name, text in (
            ("study.json", to_json(found, records)),
            ("study.csv", to_csv(records)),
            ("STUDY.md", markdown(found)),
            ("study.tex", latex_table(found)),
            ("report.html", page(found)),
        ):
            write_whole(DISK, folder.path / name, text.encode("utf-8"))
    return found
