"""Makes the kernel what the state asks for. `driver.Driver` says in which order, and is the only face.

Each kind of object is a `duty.Duty`: wishes, a Target of tortie.linux or one here, and when it is due.
"""
