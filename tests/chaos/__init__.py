"""Studies under faults: workers killed, the server restarted, its network cut, the disk full.

``python -m tests.chaos`` is the long form.
"""
