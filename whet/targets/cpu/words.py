"""The words of memory that runs and workers share: where they lie in their blocks, in bytes."""

from __future__ import annotations

# The pool's block: settings, the count of busy threads, the CPU mask, then the mailboxes.
CLOSING, WORKERS, IDLE, HOT, PATIENCE, JOIN, MASK_BYTES, NAP = 0, 4, 8, 16, 24, 32, 40, 48
ACTIVE, CAPACITY, MASK, MAILBOXES = 64, 68, 128, 256
MASK_BYTES_MOST = MAILBOXES - MASK
# A worker's mailbox. Two cache lines each, since processors fetch them in pairs.
JOB, SLEEPING, TID, AVOIDS, MAILBOX_BYTES = 0, 8, 12, 16, 128
# What a mailbox's job may be; any other value is the address of a run's block, plus OFFER.
FREE, TAKEN, BUSY, STOP, OFFER = 0, 1, 2, 3, 4
# A run's block, a cache line for each word that all threads write.
TABLE, COUNT, TIMES, POOL, LEASED, LEASES, CPU = 0, 8, 16, 24, 32, 40, 48
JOINED, ARRIVED, STAGE, SLEEPERS, DONE = 64, 128, 192, 200, 256
RUN_BYTES = 320
