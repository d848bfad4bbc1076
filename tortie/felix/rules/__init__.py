"""What is to be enforced as chains of rules, in one form (ir.py) with several renderers. Pure.

Builders: static.py, dispatch.py, endpoints.py, profiles.py (with policy.py) and nat.py; they know the
configuration as settings.Settings. Renderers: iptables.py and nftables.py give text, evaluate.py runs a
packet.
"""
