"""Runs a program in which one system call fails: forbid.py NUMBER ERRNO PROGRAM [ARGUMENT...]

A seccomp filter, as a container's profile would have it.
"""
import ctypes
import os
import struct
import sys

LOAD_NUMBER, SKIP_UNLESS_EQUAL, RETURN = 0x20, 0x15, 0x06
FAIL_WITH, ALLOW = 0x00050000, 0x7FFF0000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2

number, errno = int(sys.argv[1]), int(sys.argv[2])
program = b"".join(
    struct.pack("HBBI", *step)
    for step in [
        (LOAD_NUMBER, 0, 0, 0),
        (SKIP_UNLESS_EQUAL, 0, 1, number),
        (RETURN, 0, 0, FAIL_WITH | errno),
        (RETURN, 0, 0, ALLOW),
    ]
)
steps = ctypes.create_string_buffer(program)
filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(steps)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_, 0, 0) == 0
os.execv(sys.argv[3], sys.argv[3:])
