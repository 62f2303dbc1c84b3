"""The HTML report, figures, grids, listening sheets, and the generated parts of the documentation."""
