from prunesid_cli.cli.app import main

main()
