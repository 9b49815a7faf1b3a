"""Draw the figure of the page on the network that generalises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from watcher.training.multi_source import generalisation_report


def draw(folds: Mapping[str, generalisation_report.Figures], path: Path) -> None:
    """Draw what becomes of each source and each kind, as bars."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "mednet-watcher", "svg.fonttype": "none"})
    known, outliers = list(generalisation_report.sources(folds)), generalisation_report.outlier_kinds(folds)
    figure = Figure(figsize=(11, 0.24 * max(len(known), len(outliers)) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{row['class']}, {row['origin']} ({row['images']})" for row in known]
    shares = np.array([[row["filed_right"], row["filed_wrong"]] for row in known]) / [[r["images"]] for r in known]
    left.barh(names, shares[:, 0], color="tab:green", label="filed right")
    left.barh(names, shares[:, 1], left=shares[:, 0], color="tab:red", label="filed wrong")
    left.barh(names, 1 - shares.sum(axis=1), left=shares.sum(axis=1), color="0.85", label="to review")
    names = [f"{row['kind']} ({row['images']})" for row in outliers]
    kept = np.array([row["reviewed"] / row["images"] for row in outliers])
    right.barh(names, 1 - kept, color="tab:red", label="filed, wrongly")
    right.barh(names, kept, left=1 - kept, color="0.85", label="to review")
    for panel, title in ((left, "sources not trained on"), (right, "kinds not trained on, none of the six")):
        panel.invert_yaxis()
        panel.set(title=title, xlim=(0, 1))
        panel.tick_params(labelsize=7)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), ncols=3, fontsize=7, frameon=False)
    figure.savefig(path, metadata={"Date": None})
