"""A virtual machine with Debian's stock kernel, for tests that load real modules.

``python3 -m tests.vm --help`` is the command line; :class:`tests.vm.machine.Machine` is what pytest uses.
Nothing here is part of kmodd, and nothing here needs more than Python's standard library on the host.
"""
