"""The web page of `rinalmo web`: fill masks, fold, embed and score variants in a browser, on one's own machine.

    limits     how much the page takes, and pasted text → records
    turns      who computes now: many visitors, one model
    service    the answers, without any page: what each tab and each API endpoint computes
    pictures   what the page shows as SVG
    page       the tabs and the API, in Gradio (the only file that knows it)
    server     the page on a port: limits of a request, headers, an end in good order

A skin: it imports anything and is imported by `rinalmo.cli.web` alone.
"""
