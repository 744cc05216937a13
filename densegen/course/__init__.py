"""The course: what runs lectures, grades homework and answers on the command line."""
import sys

# nbformat asks jsonschema, which would compile a grammar of addresses for two to three seconds in every
# process; no notebook's schema has such an address, and jsonschema does without if the import fails
sys.modules.setdefault("rfc3987_syntax", None)
