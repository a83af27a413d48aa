# SPDX-License-Identifier: LGPL-2.1-or-later
# bash completion for kmodctl. Names come from small files of the kernel and its module index, so that a key press starts
# neither Python nor the daemon.

_kmodctl_loaded() {
    cut -d' ' -f1 /proc/modules 2>/dev/null
}

_kmodctl_available() {
    sed -n 's|^\([^:]*/\)\{0,1\}\([^/:.]*\)\.ko[^:]*:.*|\2|p' "/lib/modules/$(uname -r)/modules.dep" 2>/dev/null | tr - _
}

# What has an active version. The store itself is for root's eyes alone.
_kmodctl_stored() {
    printf '%s\n' /lib/modules/*/updates/kmodd/*.ko | sed -n 's|.*/\([^/*]*\)\.ko$|\1|p' | sort -u
}

_kmodctl_parameters() {
    local module=${1//-/_} entry
    for entry in "/sys/module/$module/parameters/"*; do
        [[ -e $entry ]] && printf '%s\n' "${entry##*/}"
    done
}

_kmodctl_offer() {
    # Unquoted on purpose: one word for each name, and names have no spaces.
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$current")
}

_kmodctl() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    local everywhere='--json --no-pager --no-ask-password --session --bus --help'
    local commands='list show why load unload reload batch plan set status log monitor reset-failed config store notify token'
    local changes='--dry-run --reason --timeout'
    local command='' group='' module='' arguments=0 index word
    COMPREPLY=()

    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        case $word in
            --bus|--reason|--timeout|--state|--since|-n|--lines|--version|--description|--kernel) ((index++)) ;;
            --sign) ((index += 2)) ;;
            --scope|--expires|--file) ((index++)) ;;
            --event|--error|--module|--uid|--severity|--format|--digest|--per-hour) ((index++)) ;;
            -*) ;;
            plan) [[ -z $command ]] && { commands='load unload reload batch'; changes=''; } || ((arguments++)) ;;
            store)
                if [[ -z $command$group ]]; then
                    group=store- commands='list import activate deactivate remove'
                else
                    ((arguments++))
                fi ;;
            config)
                if [[ -z $command$group ]]; then
                    group=config- commands='show autoload options blacklist drift apply reload'
                else
                    ((arguments++))
                fi ;;
            *)
                if [[ -z $command ]]; then
                    command=$group$word
                else
                    ((arguments++))
                    [[ -z $module ]] && module=$word
                fi ;;
        esac
    done

    case $previous in
        --state) _kmodctl_offer 'loaded available builtin all'; return ;;
        --since) _kmodctl_offer '1h 1d 1w today yesterday'; return ;;
        --event) _kmodctl_offer 'load unload failure crash stuck health drift unsigned store denied'; return ;;
        --severity) _kmodctl_offer 'info notice warning error'; return ;;
        --scope) _kmodctl_offer 'read load unload set-parameter configure import admin'; return ;;
        --expires) _kmodctl_offer '12h 30d 90d 1y'; return ;;
        --file) mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        --format) _kmodctl_offer 'json chat'; return ;;
        --module) _kmodctl_offer "$(_kmodctl_loaded)"; return ;;
        --sign) mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        --kernel) _kmodctl_offer "$(command ls /lib/modules 2>/dev/null)"; return ;;
        --bus|--reason|--timeout|-n|--lines|--version|--description|--error|--uid|--digest|--per-hour) return ;;
    esac

    if [[ -z $command ]]; then
        _kmodctl_offer "$commands $everywhere --version"
        return
    fi
    if [[ $current == -* ]]; then
        case $command in
            list) _kmodctl_offer "--state $everywhere" ;;
            load|reload) _kmodctl_offer "$changes --override-policy $everywhere" ;;
            unload) _kmodctl_offer "$changes --dependents --unused-dependencies $everywhere" ;;
            batch) _kmodctl_offer "${changes:+--dry-run --reason} --no-atomic $everywhere" ;;
            notify) _kmodctl_offer "--event --error --module --uid --severity --format --digest --per-hour $everywhere" ;;
            token) _kmodctl_offer "--scope --module --expires --file $everywhere" ;;
            log) _kmodctl_offer "--follow --since --lines $everywhere" ;;
            config-show) _kmodctl_offer "--findings $everywhere" ;;
            config-autoload|config-options) _kmodctl_offer "--off --dry-run --reason $everywhere" ;;
            config-blacklist) _kmodctl_offer "--hard --off --dry-run --reason $everywhere" ;;
            config-apply) _kmodctl_offer "--initramfs --dry-run --reason $everywhere" ;;
            store-import) _kmodctl_offer "--version --description --shadow --sign --dry-run $everywhere" ;;
            store-activate|store-deactivate) _kmodctl_offer "--load --kernel --dry-run $everywhere" ;;
            store-remove) _kmodctl_offer "--dry-run $everywhere" ;;
            *) _kmodctl_offer "$everywhere" ;;
        esac
        return
    fi
    case $command:$arguments in
        load:0|show:0|why:0|config-show:0|config-autoload:0|config-options:0|config-blacklist:0) _kmodctl_offer "$(_kmodctl_available)" ;;
        unload:0|reload:0|set:0|reset-failed:0|log:0|list:0) _kmodctl_offer "$(_kmodctl_loaded)" ;;
        notify:0) _kmodctl_offer 'status list add remove enable disable test reload' ;;
        token:0) _kmodctl_offer 'create list revoke' ;;
        set:1) _kmodctl_offer "$(_kmodctl_parameters "$module")" ;;
        store-list:0|store-activate:0|store-deactivate:0|store-remove:0) _kmodctl_offer "$(_kmodctl_stored)" ;;
        batch:0|store-import:0) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    esac
}

complete -F _kmodctl kmodctl
