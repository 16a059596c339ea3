"""What is paid for, accounted for outside: workers that use the wrapper alone, a ledger that outlives them, trouble.

Each execution of a step costs something, and a process of its own writes that down (``book``): what it has
acknowledged is on its disk. Workers (``worker``) run scripts (``scripts``) of all kinds of work, while trouble comes
from outside (``trouble``). In the end the ledger is held against the database (``verdict``): nothing is paid twice
where nobody died, nothing is lost, nothing stands still.
"""
