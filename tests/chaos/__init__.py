"""Trades flow while everything is killed, again and again; afterwards every row is accounted for.

__main__.py   the command line
campaign.py   the campaign: which processes run, what happens when, what is compared at the end; page.py, the dashboard
single.py     the faults of one machine; cluster.py, of several (machines.py, link.py); control.py, the control
traffic.py    the messages of the recording producer
ledger.py     what should be in the table and the dead-letter topic, derived from what the topic holds
flow.py       how long until rows flow again
report.py     what was done and what was found
"""
