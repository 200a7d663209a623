from prunesid_cli.cli import main

main()
