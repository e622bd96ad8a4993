#compdef tdb
# Completion of tdb for zsh.
_tdb() {
    local context state state_descr line
    typeset -A opt_args
    local -a commands=($described)
    _arguments -C -S $options '1:command:->command' '*::argument:->argument'
    case $$state in
        command) _describe command commands ;;
        argument) case $$words[1] in
$cases
        esac ;;
    esac
}
if [ "$${funcstack[1]}" = _tdb ]; then _tdb "$$@"; else compdef _tdb tdb; fi
