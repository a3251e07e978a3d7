"""presnap's methods for SPDK's scripts/rpc.py.

Generated from src/rpc/table.rs by `presnap rpc --plugin`: change that, not this.

    PYTHONPATH=scripts "$SPDK_DIR"/scripts/rpc.py --plugin presnap_rpc \\
        presnap_snapshot_create vol0 monday

Works with rpc.py of SPDK 20.07 up to current ones and needs nothing but Python's own library. The
target is the judge of values: this file only says which parameters there are.
"""

import json

# (method, summary, [(parameter, type, positional, required, values, help)])
METHODS = [
    # @METHODS@
]


def _list(text):
    return [entry for entry in text.split(',') if entry]


_TYPES = {'int': int, 'float': float, 'str': str, 'list': _list}


def _add_parameter(parser, name, kind, positional, required, values, text):
    options = {'help': text}
    if values is not None:
        options['choices'] = values
    option = '--' + name.replace('_', '-')
    if kind == 'flag':
        parser.add_argument(option, dest=name, action='store_const', const=True, **options)
        return
    options['type'] = _TYPES[kind]
    if positional:
        parser.add_argument(name, nargs=None if required else '?', **options)
    else:
        parser.add_argument(option, dest=name, required=required, **options)


def _caller(method, names):
    def call(args):
        params = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
        result = args.client.call(method, params)
        if result is not None:  # a dry run has no result
            print(json.dumps(result, indent=2))
    return call


def spdk_rpc_plugin_initialize(subparsers):
    """Adds a subcommand per method; called by rpc.py."""
    for method, summary, parameters in METHODS:
        parser = subparsers.add_parser(method, help=summary, description=summary)
        for parameter in parameters:
            _add_parameter(parser, *parameter)
        parser.set_defaults(func=_caller(method, [parameter[0] for parameter in parameters]))
