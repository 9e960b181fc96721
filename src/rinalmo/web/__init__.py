"""The web app of `rinalmo web`: fill masks, fold, embed and score variants in a browser, on one's own machine.

service    limits of the input, turns of many visitors with one model, and what each tab and API endpoint computes
app        the tabs and the API, in Gradio (the only file that knows it)
server     the app on a port: limits of a request, headers, a clean shutdown
"""
