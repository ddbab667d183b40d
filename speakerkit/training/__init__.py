"""One trainer for every task: loop, distribution, precision, schedules, checkpoints."""
