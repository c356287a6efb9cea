"""Everything that touches hardware: transports, leases, the agent, one session per visit."""
