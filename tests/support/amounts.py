"""How much of a probe is done: by ``make test``, which must come to its end in minutes, and by ``make torture``, which
does the same in a longer form (``torture.long``).
"""

from __future__ import annotations

from typing import NamedTuple


class Amount(NamedTuple):
    test: int
    torture: int


#: Workers killed in the middle of their runs, in ``test_crash``; and between a charge and its checkpoint.
KILLED_WORKERS = Amount(50, 200)
KILLED_CHARGERS = Amount(40, 125)

#: Rounds of a fight for a lease that has lapsed, and leases of a millisecond.
TAKE_OVERS = Amount(400, 1000)
SHORT_LEASES = Amount(400, 1000)

#: Transactions of each of sixteen writers, and calls of each of sixteen connections.
TRANSACTIONS = Amount(40, 100)
RANDOM_CALLS = Amount(300, 800)

#: Gates of each of twenty runs, a hundred deciders at each.
GATES = Amount(3, 10)

#: Runs that are cancelled at the moment at which something else happens to them.
CANCELLATIONS = Amount(300, 1000)

#: Examples of Hypothesis, each with dozens of values.
EXAMPLES = Amount(20, 100)

#: Sequences of calls against the model; ``make torture`` makes them by time.
SEQUENCES = 50

#: Subscribers of so many runs with so many events each; streams that are open at once.
SUBSCRIBERS = Amount(150, 500)
FOLLOWED_RUNS = Amount(20, 50)
EVENTS = Amount(100, 200)
STREAMS = Amount(400, 1000)

#: Random cron expressions, each compared with another implementation.
CRON_EXPRESSIONS = Amount(100, 3000)

#: Changes of the clocks of each zone, in whose neighbourhood schedules fire.
CLOCK_CHANGES = Amount(2, 20)

#: Worker processes of queues that are killed in the middle of their runs.
KILLED_QUEUE_WORKERS = Amount(8, 60)

#: Processes that work on graphs of LangGraph, and are killed at any moment; threads on which two begin at once.
KILLED_GRAPHS = Amount(8, 100)
RACED_GRAPHS = Amount(1, 30)

#: Runs that claimers complete while they are killed; how many claimers, and how often one is killed or terminated.
CLAIMED_RUNS = Amount(120, 20_000)
CLAIMERS = Amount(4, 16)
KILLED_CLAIMERS = Amount(8, 200)

#: How many of a third of these runs may begin in a second, and a quarter of that of one key: so few that it is reached.
STARTS = Amount(12, 80)

#: Runs of one large key, and how many small keys there are beside it, with five runs each.
LARGE_KEY = Amount(400, 50_000)
SMALL_KEYS = Amount(20, 200)

#: Schedules, processes that look at the clock, and days that go by.
CLOCKS = Amount(8, 50)
CLOCK_PROCESSES = Amount(3, 10)
DAYS = Amount(5, 365)

#: Runs that are worked on while versions of their code come and go, and how many versions.
DEPLOYED_RUNS = Amount(60, 600)
DEPLOYS = Amount(1, 6)

#: Worker processes of agents, of each framework, that are killed in the middle of their runs.
KILLED_AGENTS = Amount(2, 100)

#: Requests that Schemathesis makes up for each route; the long form also goes to each limit of each parameter.
DESCRIBED = Amount(4, 40)

#: Workers that write behind, and are killed.
KILLED_BEHIND = Amount(3, 100)
