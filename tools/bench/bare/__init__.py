"""Bare loops: the least that an application needs to call each runtime, and to time the calls.

They share nothing with the agents they are compared with but the runtimes themselves.
"""
