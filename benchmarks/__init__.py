"""Every number that the README or the docs quote has its command here.

One file is one question; its docstring's first line asks it. A file answers with `measure(quick) -> Result`, and
checks inside that the contestants compute the same. Files whose names begin with an underscore are what they share.
"""

from stillhouse.thread_waiting import spin_briefly

# As the command does for itself: what is measured here is what runs there.
spin_briefly()
