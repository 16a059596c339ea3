"""A dispatcher of push queues in a process of its own, to be killed."""

import sys
import threading

from tidebase import Tidebase

with Tidebase(sys.argv[1]) as tide:
    tide.push_dispatcher(secret="whsec", allow_private=True).run(threading.Event())
