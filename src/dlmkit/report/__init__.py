"""Reports: finished runs as terminal tables, as JSON, and as one self-contained HTML page. Never imports torch.

`load` reads run folders; `compare` holds the comparisons on equal terms, `tables` the rows that terminal and page
share, `plots` the SVG; `terminal`, `page` and `write` show them. `dlmkit.commands.report` is the command.
"""
