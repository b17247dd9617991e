"""Published weights by name.

a user's word for weights --weights_files--> a file on this disk
                              |    '--> published      the table of names
                              '--> download            one file, whole and checked
                                       '--> http_answer    one connection
command      python -m nets.zoo: the list, and downloads for later
"""
