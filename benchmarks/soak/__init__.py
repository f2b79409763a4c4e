"""An hour of load that the service could bear for ever: does any process's memory grow, does any request fail?"""
