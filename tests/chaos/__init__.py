"""Trades flow while everything is killed, again and again; afterwards every row is accounted for.

__main__.py   the command line
campaign.py   the course of it: who runs, what is done when, what is compared in the end
single.py     the faults of one machine
traffic.py    the messages of the recording producer
ledger.py     what has to be found, told from what the topic holds
flow.py       how long until rows flow again
report.py     what was done and what was found
"""
