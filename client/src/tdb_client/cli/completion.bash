# Completion of tdb for bash. Where nothing fits, readline offers files.
_tdb() {
    local current=$${COMP_WORDS[COMP_CWORD]} previous=$${COMP_WORDS[COMP_CWORD-1]} command= words= word
    for word in "$${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $$word in $commands) command=$$word; break ;; esac
    done
    COMPREPLY=()
    case $$previous in $texts) return ;; esac
    case $$command in
$words
    esac
    case $$command,$$previous in
$values
    esac
    COMPREPLY=($$(compgen -W "$$words" -- "$$current"))
}
complete -o default -F _tdb tdb
