"""`report`: runs, stores, image sets, projectors and generators on one self-contained page.

`page` holds what a page is made of, as data; `html` makes the file of it, for this command and for others.
"""
