package procfs

// Tree returns all living processes that belong to the family of root: those
// in its session, those that descend from a member, and those that carry the
// mark in the environment they were started with (they stay recognisable after
// they made a session of their own and their parents died). Processes in spare
// are never returned and never lead to others.
func Tree(root int, mark string, spare ...int) ([]Process, error) {
	all, err := All()
	if err != nil {
		return nil, err
	}
	skip := make(map[int]bool, len(spare)+1)
	skip[1] = true
	for _, pid := range spare {
		skip[pid] = true
	}
	in := make(map[int]bool)
	for _, p := range all {
		if !skip[p.PID] && (p.PID == root || p.Session == root) {
			in[p.PID] = true
		}
	}
	for _, p := range all {
		if !in[p.PID] && !skip[p.PID] && !p.Dead() && HasEnv(p.PID, mark) {
			in[p.PID] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if !in[p.PID] && !skip[p.PID] && in[p.PPID] {
				in[p.PID], grown = true, true
			}
		}
	}
	family := make([]Process, 0, len(in))
	for _, p := range all {
		if in[p.PID] && !p.Dead() {
			family = append(family, p)
		}
	}
	return family, nil
}

// Groups returns the process groups that exist in a session.
func Groups(session int) ([]int, error) {
	all, err := All()
	if err != nil {
		return nil, err
	}
	seen := make(map[int]bool)
	var groups []int
	for _, p := range all {
		if p.Session == session && p.Group > 1 && !p.Dead() && !seen[p.Group] {
			seen[p.Group] = true
			groups = append(groups, p.Group)
		}
	}
	return groups, nil
}
