# SPDX-License-Identifier: LGPL-2.1-or-later
# fish completion for kmodctl. Names come from small files of the kernel and its module index, so that a key press starts
# neither Python nor the daemon.

function __kmodctl_loaded
    cut -d' ' -f1 /proc/modules 2>/dev/null
end

function __kmodctl_available
    sed -n 's|^\([^:]*/\)\{0,1\}\([^/:.]*\)\.ko[^:]*:.*|\2|p' /lib/modules/(uname -r)/modules.dep 2>/dev/null | tr - _
end

# The words after the command that are no options.
function __kmodctl_words
    commandline -opc | tail -n +2 | string match -v -- '-*'
end

function __kmodctl_command
    set -l words (__kmodctl_words)
    if test "$words[1]" = plan
        set -e words[1]
    end
    contains -- "$words[1]" $argv
    and test (count $words) -eq 1
end

function __kmodctl_has
    set -l words (__kmodctl_words)
    if test "$words[1]" = plan
        set -e words[1]
    end
    contains -- "$words[1]" $argv
end

function __kmodctl_config
    set -l words (__kmodctl_words)
    test "$words[1]" = config; and contains -- "$words[2]" $argv
end

function __kmodctl_parameters
    set -l words (__kmodctl_words)
    test "$words[1]" = set; and test (count $words) -eq 2
    and command ls /sys/module/(string replace -a - _ -- $words[2])/parameters 2>/dev/null
end

complete -c kmodctl -f
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a list -d 'List modules'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a show -d 'Show what a module is'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a why -d 'Explain a module'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a plan -d 'Show the steps of a change'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a set -d 'Write a parameter'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a status -d 'Show how things are'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a log -d 'Show what was done'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a monitor -d 'Show what happens'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a reset-failed -d 'Forget a failure'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a notify -d 'Who is told what happens'
complete -c kmodctl -n '__kmodctl_command notify' -a 'status list add remove enable disable test reload'
complete -c kmodctl -n '__kmodctl_has notify' -l event -x -a 'load unload failure crash stuck health drift unsigned store denied' -d 'Only these'
complete -c kmodctl -n '__kmodctl_has notify' -l error -x -d 'Only these errors'
complete -c kmodctl -n '__kmodctl_has notify' -l module -x -a '(__kmodctl_loaded)' -d 'Only modules like this'
complete -c kmodctl -n '__kmodctl_has notify' -l uid -x -d 'Only what they asked for'
complete -c kmodctl -n '__kmodctl_has notify' -l severity -x -a 'info notice warning error' -d 'At least'
complete -c kmodctl -n '__kmodctl_has notify' -l format -x -a 'json chat' -d 'Of messages'
complete -c kmodctl -n '__kmodctl_has notify' -l digest -x -d 'Seconds to collect'
complete -c kmodctl -n '__kmodctl_has notify' -l per-hour -x -d 'Mails at most'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a token -d 'Tokens of the HTTP gateway'
complete -c kmodctl -n '__kmodctl_command token' -a 'create list revoke'
complete -c kmodctl -n '__kmodctl_has token' -l scope -x -a 'read load unload set-parameter configure import admin' -d 'Good for'
complete -c kmodctl -n '__kmodctl_has token' -l module -x -a '(__kmodctl_available)' -d 'May change'
complete -c kmodctl -n '__kmodctl_has token' -l expires -x -a '12h 30d 90d 1y' -d 'After'
complete -c kmodctl -n '__kmodctl_has token' -l file -r -F -d 'File of tokens'
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a config -d 'Rules about modules'
set -l config 'test "$(__kmodctl_words)" = config'
complete -c kmodctl -n $config -a show -d 'Show every rule'
complete -c kmodctl -n $config -a autoload -d 'Load at every boot'
complete -c kmodctl -n $config -a options -d 'Parameters it is loaded with'
complete -c kmodctl -n $config -a blacklist -d 'Keep from being loaded'
complete -c kmodctl -n $config -a drift -d 'Show what is not as wanted'
complete -c kmodctl -n $config -a apply -d 'Make it as wanted'
complete -c kmodctl -n $config -a reload -d 'Read the files again'
complete -c kmodctl -n '__kmodctl_config show autoload options blacklist; and test (count (__kmodctl_words)) -eq 2' -a '(__kmodctl_available)'
complete -c kmodctl -n '__kmodctl_config show' -l findings -d 'Only what is wrong'
complete -c kmodctl -n '__kmodctl_config blacklist' -l hard -d 'By its name too'
complete -c kmodctl -n '__kmodctl_config autoload options blacklist' -l off -d 'Take the rule away'
complete -c kmodctl -n '__kmodctl_config apply' -l initramfs -d 'Refresh it afterwards'
complete -c kmodctl -n '__kmodctl_config autoload options blacklist apply' -l dry-run -d 'Change nothing'
complete -c kmodctl -n '__kmodctl_config autoload options blacklist apply' -l reason -x -d 'One line for the journal'
for first in 'test (count (__kmodctl_words)) -eq 0' 'test "$(__kmodctl_words)" = plan'
    complete -c kmodctl -n $first -a load -d 'Load a module'
    complete -c kmodctl -n $first -a unload -d 'Unload a module'
    complete -c kmodctl -n $first -a reload -d 'Unload and load anew'
    complete -c kmodctl -n $first -a batch -d 'Several changes as one'
end
complete -c kmodctl -n '__kmodctl_command load show why' -a '(__kmodctl_available)'
complete -c kmodctl -n '__kmodctl_command unload reload set log list reset-failed' -a '(__kmodctl_loaded)'
complete -c kmodctl -n '__kmodctl_has set' -a '(__kmodctl_parameters)'
complete -c kmodctl -n '__kmodctl_command batch' -F

complete -c kmodctl -l json -d 'Print JSON'
complete -c kmodctl -l no-pager -d 'Do not use a pager'
complete -c kmodctl -l no-ask-password -d 'Never ask for a password'
complete -c kmodctl -l session -d 'Use the session bus'
complete -c kmodctl -l bus -x -d 'Use the bus at this address'
complete -c kmodctl -l help -d 'Show help'
complete -c kmodctl -l version -d 'Show the version'
complete -c kmodctl -n '__kmodctl_has list' -l state -x -a 'loaded available builtin all' -d 'Which'
complete -c kmodctl -n '__kmodctl_has load unload reload batch' -l dry-run -d 'Show the plan, change nothing'
complete -c kmodctl -n '__kmodctl_has load unload reload batch' -l reason -x -d 'One line for the journal'
complete -c kmodctl -n '__kmodctl_has load unload reload' -l timeout -x -d 'Seconds for each call into the kernel'
complete -c kmodctl -n '__kmodctl_has load reload' -l override-policy -d 'Load although blacklisted'
complete -c kmodctl -n '__kmodctl_has unload' -l dependents -d 'First what uses it'
complete -c kmodctl -n '__kmodctl_has unload' -l unused-dependencies -d 'Then what nobody needs'
complete -c kmodctl -n '__kmodctl_has batch' -l no-atomic -d 'Each change stands for itself'
complete -c kmodctl -n '__kmodctl_has log' -s f -l follow -d 'Keep showing'
complete -c kmodctl -n '__kmodctl_has log' -l since -x -a '1h 1d 1w today yesterday' -d 'From then on'
complete -c kmodctl -n '__kmodctl_has log' -s n -l lines -x -d 'At most'

function __kmodctl_store
    set -l words (__kmodctl_words)
    test "$words[1]" = store; and contains -- "$words[2]" $argv
end
# What has an active version, for the first word after the command. The store itself is for root's eyes alone.
function __kmodctl_stored
    test (count (__kmodctl_words)) -eq 2; or return
    for file in /lib/modules/*/updates/kmodd/*.ko
        string replace -r '.*/(.*)\.ko$' '$1' -- $file
    end | sort -u
end
complete -c kmodctl -n 'test (count (__kmodctl_words)) -eq 0' -a store -d 'Custom modules'
set -l store 'test "$(__kmodctl_words)" = store'
complete -c kmodctl -n $store -a list -d 'Show every version'
complete -c kmodctl -n $store -a import -d 'Take a file into the store'
complete -c kmodctl -n $store -a activate -d 'Bring a version into force'
complete -c kmodctl -n $store -a deactivate -d 'Give the own one back'
complete -c kmodctl -n $store -a remove -d 'Remove a version'
complete -c kmodctl -n '__kmodctl_store import' -F
complete -c kmodctl -n '__kmodctl_store list activate deactivate remove' -a '(__kmodctl_stored)' -d 'Active module'
complete -c kmodctl -n '__kmodctl_store import' -l version -x -d 'Default: its own'
complete -c kmodctl -n '__kmodctl_store import' -l description -x -d 'One line about it'
complete -c kmodctl -n '__kmodctl_store import' -l shadow -d 'Before one of the kernel'
complete -c kmodctl -n '__kmodctl_store import' -l sign -r -d 'Sign it first: KEY CERT'
complete -c kmodctl -n '__kmodctl_store import activate deactivate remove' -l dry-run -d 'Change nothing'
complete -c kmodctl -n '__kmodctl_store activate deactivate' -l load -d 'Load or reload it'
complete -c kmodctl -n '__kmodctl_store activate deactivate' -l kernel -x -a '(command ls /lib/modules 2>/dev/null)' -d 'Default: the running one'
