"""Target-speaker extraction: from a mixture and an enrolment to the target's voice alone."""
