"""Runs that last and that somebody watches: trainings, teachings, cohorts."""
