"""Thousands of CTs: listed, segmented by Dask's workers, kept case by case, and told in tables and a report.

`listing` finds the CTs, `case_task` is what a worker does with one of them, `cohort_run` gives them out and goes on
where an earlier run stopped, `tables` and `report` say what came of it. Only the script `cohort` imports this package.
"""
