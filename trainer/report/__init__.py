"""`report`: runs, stores, image sets, projectors and generators on one self-contained page.

`page` has the content of a page as data classes, and `html` renders it to a file; other commands use both.
"""
